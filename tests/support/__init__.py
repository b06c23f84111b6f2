"""What tests hold castore against: written without castore's own code."""
