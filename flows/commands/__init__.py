"""The command line `lsap`: each verb turns words into one call."""
