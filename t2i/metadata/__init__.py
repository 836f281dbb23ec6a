"""How an image was made: the record, A1111's form, into files and back, differences."""
