"""Corpus measures of text against text, and the tables that show them: no fairseq, no files."""
