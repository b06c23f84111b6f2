"""MariaDB and MySQL: one database of a server."""
