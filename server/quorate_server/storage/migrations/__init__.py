"""The layouts of the server's database, one revision each, in Alembic's form. ``storage/upgrade.py`` runs them.

A revision is never changed once it was released: databases are at it. A new one is a file in ``versions/``, its number
``LAYOUT`` in ``storage/database.py``, and the change of the tables; a test holds the three against each other.
"""
