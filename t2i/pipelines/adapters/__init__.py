"""LoRAs, textual inversion and IP-Adapters: find, verify, attach."""
