"""Codes of an archive in the forms of other tools: data sets of Hugging Face, Lance, WebDataset."""
