2setosa2
versicolor2	virginica2setosa2setosa2
versicolor