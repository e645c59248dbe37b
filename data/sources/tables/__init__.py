"""Tables of images: how they are read, where the images lie that they name, and what their labels mean."""
