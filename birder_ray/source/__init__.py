"""Sources: image directories and files, WebDataset tars, Parquet with image bytes, manifests of URIs."""
