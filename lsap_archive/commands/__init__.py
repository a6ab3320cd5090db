"""The command `lsap-archive`, for whoever reads archives where nothing else of this project is installed."""
