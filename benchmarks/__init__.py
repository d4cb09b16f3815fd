"""``castvision benchmark``: speed and memory of CAST beside fused full attention and timm's models, on this machine.

main      the command line                      levels    what can be measured, by name
timing    interleaved competitors, medians      memory    peak memory in a fresh process
subjects  builds what is measured from a key    record    figures and their file
goals     the ratios we hold ourselves to       report    tables;  figure  the picture
"""
