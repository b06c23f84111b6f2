"""Write sessions: chunks become records, records become packs."""
