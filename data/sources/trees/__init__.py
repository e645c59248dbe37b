"""How the folders that users bring are read: names of splits and roles, class folders, images beside their labels."""
