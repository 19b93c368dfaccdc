"""A model at work: model files, engines, prediction of images, folders and huge images."""
