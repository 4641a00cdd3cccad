"""A verified model into a .tflite file that Android accepts: conversion, quantisation, metadata, and the report."""
