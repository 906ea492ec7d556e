"""Published methods, one small file each: what they collect, select and minimise, beside their baseline."""
