"""Everything a person looks at: TensorBoard, pictures, comparisons of studies.

The only room that imports TensorBoard and matplotlib.
"""
