"""What tests share: finding programs, private servers."""
