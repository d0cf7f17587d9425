# What the R package apcluster finds: Rscript tests/apcluster.R points.csv K
# One line each: the preference, then the exemplars, counted from 0. First three given preferences, then apclusterK's last.
suppressMessages(library(apcluster))
arguments <- commandArgs(TRUE)
points <- as.matrix(read.csv(arguments[1], header = FALSE))
similarity <- negDistMat(points, r = 2)
show <- function(result, preference) {
  cat(formatC(preference, digits = 17, format = "g"), sort(as.integer(result@exemplars)) - 1, "\n")
}
range <- preferenceRange(similarity)
cat("range", formatC(range, digits = 17, format = "g"), "\n")
for (share in c(0.003, 0.03, 0.3)) {
  preference <- range[2] - share * (range[2] - range[1])
  show(apcluster(similarity, p = preference, lam = 0.9, convits = 50, maxits = 2000, nonoise = TRUE), preference)
}
result <- apclusterK(similarity, K = as.integer(arguments[2]), prc = 0, lam = 0.9, convits = 50, maxits = 2000,
                     nonoise = TRUE, verbose = FALSE)
show(result, result@p[1])
