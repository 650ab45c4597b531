# Columns: seconds, thousand messages per second, MB, dead tuples; blocks: outbox, node.

set terminal svg size 820,560 font 'Helvetica,Arial,sans-serif,14' background '#ffffff'
set output image
set datafile missing '-'

set multiplot layout 2,1 title "{/:Bold Publishing while another session holds a snapshot}" font ',17'
set border 3 lc rgb '#555555'
set tics nomirror out textcolor rgb '#333333'
set grid ytics lc rgb '#e4e4e4' lt 1
set style line 1 lc rgb '#1764ab' lw 2.5
set style line 2 lc rgb '#d2691e' lw 2.5
set xrange [0:*]
set yrange [0:*]
set lmargin 11
set rmargin 3
set key outside top right horizontal reverse Left samplen 2

set title 'thousand messages delivered per second' offset 0,-0.5
plot data index 0 using 1:2 with lines ls 1 title 'outbox', \
	data index 1 using 1:2 with lines ls 2 title 'relay with SKIP LOCKED'

set title 'size of the tables with their indexes, MB' offset 0,-0.5
set xlabel 'seconds'
unset key
plot data index 0 using 1:3 with lines ls 1 notitle, \
	data index 1 using 1:3 with lines ls 2 notitle
unset multiplot
