"""The web demo, `demo/app.py`; in a wheel the package ``castvision_demo``. ``castvision demo --web`` starts it."""
