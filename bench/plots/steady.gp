# Columns: contender, milliseconds from commit to consumer for half of the messages, for
# 99 of 100; blocks: 10 a second, 1,000 a second.

set terminal svg size 820,560 font 'Helvetica,Arial,sans-serif,14' background '#ffffff'
set output image

set multiplot layout 2,1 title "{/:Bold From commit to consumer}" font ',17'
set border 3 lc rgb '#555555'
set tics nomirror out textcolor rgb '#333333'
set grid xtics lc rgb '#e4e4e4' lt 1
set logscale x
set xrange [0.3:10000]
set format x '%g'
set yrange [*:*] reverse
set offsets 0,0,0.6,0.6
set lmargin 20
set rmargin 3
set key outside top right horizontal reverse Left samplen 1

do for [i=0:1] {
	set title i == 0 ? '10 messages per second' : '1,000 messages per second' offset 0,-0.5
	if (i == 1) {
		set xlabel 'milliseconds'
		unset key
	}
	plot data index i using 2:0:($3-$2):(0) with vectors nohead lw 3 lc rgb '#b9cfe4' notitle, \
		data index i using 2:0:ytic(1) with points pt 7 ps 0.9 lc rgb '#1764ab' title 'half of the messages', \
		data index i using 3:0 with points pt 7 ps 0.9 lc rgb '#d2691e' title '99 of 100'
}
unset multiplot
