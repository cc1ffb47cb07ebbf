"""Reports: the results of a run as data, Markdown, HTML and text."""
