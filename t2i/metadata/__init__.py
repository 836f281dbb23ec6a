"""Metadata of images: the record, A1111's text form, embedding in files, differences between records."""
