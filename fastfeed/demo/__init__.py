"""What ``fastfeed demo`` needs beside the loader: a drawn data set, a small network, and today's baseline."""
