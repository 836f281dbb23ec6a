"""LoRAs, textual inversion and IP-Adapters: found, checked, attached."""
