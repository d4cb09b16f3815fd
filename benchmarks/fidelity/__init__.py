"""How near clustered attention comes to full attention on pretrained weights, as distances and by what heads make of it.

    settings      what is compared: ways to run a ViT on a large image
    features      a model under a setting, and its features of an image
    photographs   images to measure on
    main          ``castvision benchmark fidelity``: rows of a JSON, resumable
    report        its table and picture
"""
