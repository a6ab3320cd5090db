"""The explorer: an archive as a local web page, over the reader alone. Starlette and uvicorn come with the extra."""
