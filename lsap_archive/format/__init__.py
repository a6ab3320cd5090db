"""What is written: names, tables, arrays, plans and manifests."""
