"""A site with other packages: their authentication classes, and apps that record who changed a row."""
