"""``castvision benchmark``: speed and memory of CAST beside fused full attention and timm's models, on this machine.

main       the command line                          levels      what can be measured, and the choices of a run
attention  the levels op, layer, block and model     generators  the level data, and images a core-second by task
tiled      the level tiled, a large image            subjects    builds what is measured from a key; its arithmetic
measuring  clocks, medians, peak memory              record      measurements, their machine and their file
goals      the ratios we hold ourselves to           report      tables and the plot

``results/`` holds what the README quotes: ``cpu/`` and ``tiled/`` are folders of ``castvision benchmark``;
pathfinder.json and dense_speed.json are of ``python -m benchmarks.generators``, dense.json and .png of
tools/dense_report.py, from_scratch.json and .png of a script that tools/experiment.py replaced; quickstart.json holds
the scores of tools/quickstart.sh. The rows of ``experiments`` are in the checkout's own folder ``results``.
"""
