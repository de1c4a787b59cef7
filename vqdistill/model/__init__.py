"""What an index has learned, and how the undistilled start of it is made."""
