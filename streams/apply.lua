-- Append one batch of a partition, if it follows what is stored, and return the histories that may change an answer.
-- KEYS  place, state, lengths, newest, booked, then one history a patient
-- ARGV  since, until, state, forget, number of bookings, least, (time, patient) of each, then (name, records, oldest, newest) of each patient
-- GAP place: less is stored than the caller can append to (`least`).   AHEAD place: a part is stored, the caller cuts it off and calls again.
local stored = tonumber(redis.call('GET', KEYS[1]) or '0')
local since, till = tonumber(ARGV[1]), tonumber(ARGV[2])
if stored < tonumber(ARGV[6]) then return {'GAP', stored} end
if stored > since and stored < till then return {'AHEAD', stored} end
local fresh = stored == since
local patients = #KEYS - 5
local first = 6 + 2 * tonumber(ARGV[5])
local ALWAYS = -4611686018427387904

local lengths, newest = {}, {}
for low = 1, patients, 1000 do                       -- unpack has a limit
  local names = {}
  for i = low, math.min(low + 999, patients) do names[#names + 1] = ARGV[first + 4 * i - 3] end
  local l, n = redis.call('HMGET', KEYS[3], unpack(names)), redis.call('HMGET', KEYS[4], unpack(names))
  for i = 1, #names do lengths[low + i - 1] = l[i]; newest[low + i - 1] = n[i] end
end

local needed, damaged, set_lengths, set_newest = {}, {}, {}, {}
local function flush(key, pairs)
  if #pairs > 0 then redis.call('HSET', key, unpack(pairs)) end
end
for i = 1, patients do
  local at = first + 4 * i
  local name, records, oldest, index = ARGV[at - 3], ARGV[at - 2], tonumber(ARGV[at - 1]), tonumber(ARGV[at])
  local before = newest[i] and tonumber(newest[i]) or ALWAYS
  local expected = lengths[i] and tonumber(lengths[i]) or 0
  local length
  if fresh then
    expected = expected + #records
    length = redis.call('APPEND', KEYS[5 + i], records)
    set_lengths[#set_lengths + 1] = name
    set_lengths[#set_lengths + 1] = expected
    if index > before then
      set_newest[#set_newest + 1] = name
      set_newest[#set_newest + 1] = ARGV[at]
    end
    if #set_lengths >= 2000 then flush(KEYS[3], set_lengths); set_lengths = {} end
    if #set_newest >= 2000 then flush(KEYS[4], set_newest); set_newest = {} end
  end
  if not fresh then length = redis.call('STRLEN', KEYS[5 + i]) end
  if oldest < before or oldest == ALWAYS then needed[#needed + 1] = i end
  if length and length ~= expected then damaged[#damaged + 1] = i end
end
if fresh then
  flush(KEYS[3], set_lengths)
  flush(KEYS[4], set_newest)
  redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', ARGV[4])
  for i = 1, tonumber(ARGV[5]) do
    redis.call('ZADD', KEYS[5], ARGV[5 + 2 * i], ARGV[5 + 2 * i] .. ':' .. ARGV[6 + 2 * i])
  end
  redis.call('SET', KEYS[2], ARGV[3])
  redis.call('SET', KEYS[1], ARGV[2])                -- last: a script that fails half-way writes again rather than skips
end
local histories = {}
for i = 1, #needed do histories[i] = redis.call('GET', KEYS[5 + needed[i]]) or '' end
return {'OK', stored, needed, histories, damaged}
