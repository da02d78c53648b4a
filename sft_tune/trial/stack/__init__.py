"""Many trials trained as one: the heads of K trials on the kept features of one backbone."""
