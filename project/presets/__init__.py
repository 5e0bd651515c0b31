"""One settings module, and one of URLs and views, for each of five existing systems.

``manage.py runserver --settings project.presets.mcrit`` answers as MCRIT does.
"""
