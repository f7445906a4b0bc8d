"""Side by side with peers: the same model, data, threads and process, interleaved, medians."""
