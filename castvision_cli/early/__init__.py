"""What is wrong with the words of a command, told before torch, timm and Lightning are imported, which takes seconds.

    paths       files and folders that do not exist, are damaged, or may not be written to
    signatures  arguments that a configuration's classes do not take
    sources     what classes take, read from their sources
    values      numbers and names that an argument cannot have
    annotations whether a value is of an annotation's type
    classes     classes that a configuration may not name, or that are not there; what the trainer's objects take
    data        the data of a run, listed and partly read
    images      images of a command, and what a checkpoint says of its model
    synthetic   numbers that a generator of images refuses       (torch is imported for it)
    model       a model that cannot be built                     (torch and timm are imported for it)

What is checked here is checked again where it is used, by the same functions where they can be imported without torch:
for whoever calls the library from Python.
"""
