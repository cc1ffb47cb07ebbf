"""Reports: what a run found, as data, Markdown, HTML and text."""
