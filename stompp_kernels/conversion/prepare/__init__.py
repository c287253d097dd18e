"""A float network becomes a progressive one: layers are found, checked, replaced and reported."""
