"""The tests. Packages are those folders whose servers end with the last test in them (`scope="package"`)."""
