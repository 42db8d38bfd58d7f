"""`heft demo`: a simulated shop, a broker and a worker, and the models' race to watch."""
