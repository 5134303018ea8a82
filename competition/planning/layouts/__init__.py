"""Layouts of competition folders: each module finds the descriptions of one family in a scanned folder."""
