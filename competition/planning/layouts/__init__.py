"""Find the layouts that fit a scanned folder; each module searches one family of layouts."""
