"""The keys of a store: which identities may read it, and which machines and admins may change it."""
