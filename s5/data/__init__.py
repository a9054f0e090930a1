"""Reading, checking and preparing data; geometry on uint8 arrays in loader workers."""
