"""The appliance: what runs on the host around the container; standard library and cryptography only."""
