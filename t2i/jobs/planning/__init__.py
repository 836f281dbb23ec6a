"""Planning: models, adapters, memory and prompt checks, before anything is drawn."""
