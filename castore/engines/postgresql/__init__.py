"""PostgreSQL: one database, or a cluster of databases with its roles."""
