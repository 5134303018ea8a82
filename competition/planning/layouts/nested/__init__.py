"""Read cases that lie in nested folders: of sites, patients, sessions and scans."""
