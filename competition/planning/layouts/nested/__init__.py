"""Read cases whose files lie in nested folders, such as folders of sites, patients, sessions or scans."""
