"""Experiments: configurations × settings × seeds, each run a committed row, and one page made of all rows.

definition  what is to be run, read from YAML    running  trains and tests what is missing, stops and goes on anywhere
rows        finished and unfinished runs as JSON  tables   means and intervals over seeds, comparisons, as Markdown
figures     curves over images and over time      page     ``results/README.md`` of all tables

`tools/experiment.py` is the command line.
"""
