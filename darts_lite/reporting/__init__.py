"""What people look at: TensorBoard, pictures, comparisons."""
