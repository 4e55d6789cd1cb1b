-- Append one batch of a partition, if it follows what is stored, and return the histories that may change an answer.
-- KEYS  place, state, lengths, newest, booked, then one history a patient
-- ARGV  since, until, state, forget, number of bookings, least, length of a history's key before the patient's name,
--       (time, patient) of each booking, then 'oldest newest records' of each patient
-- GAP place: less is stored than the caller can append to (`least`).   AHEAD place: a part is stored, the caller cuts it off and calls again.
local stored = tonumber(redis.call('GET', KEYS[1]) or '0')
local since, till = tonumber(ARGV[1]), tonumber(ARGV[2])
if stored < tonumber(ARGV[6]) then return {'GAP', stored} end
if stored > since and stored < till then return {'AHEAD', stored} end
local fresh = stored == since
local patients = #KEYS - 5
local first = 7 + 2 * tonumber(ARGV[5])
local before_name = tonumber(ARGV[7]) + 1
local ALWAYS = -4611686018427387904

local lengths, newest = {}, {}
for low = 1, patients, 1000 do                       -- unpack has a limit
  local names = {}
  for i = low, math.min(low + 999, patients) do names[#names + 1] = string.sub(KEYS[5 + i], before_name) end
  local l, n = redis.call('HMGET', KEYS[3], unpack(names)), redis.call('HMGET', KEYS[4], unpack(names))
  for i = 1, #names do lengths[low + i - 1] = l[i]; newest[low + i - 1] = n[i] end
end

local needed, damaged, set_lengths, set_newest = {}, {}, {}, {}
local function flush(key, pairs)
  if #pairs > 0 then redis.call('HSET', key, unpack(pairs)) end
end
for i = 1, patients do
  local name, told = string.sub(KEYS[5 + i], before_name), ARGV[first + i]
  local space = string.find(told, ' ', 1, true)
  local second = string.find(told, ' ', space + 1, true)
  local newest_text = string.sub(told, space + 1, second - 1)
  local oldest, index, records = tonumber(string.sub(told, 1, space - 1)), tonumber(newest_text), string.sub(told, second + 1)
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
      set_newest[#set_newest + 1] = newest_text
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
    redis.call('ZADD', KEYS[5], ARGV[6 + 2 * i], ARGV[6 + 2 * i] .. ':' .. ARGV[7 + 2 * i])
  end
  redis.call('SET', KEYS[2], ARGV[3])
  redis.call('SET', KEYS[1], ARGV[2])                -- last: a script that fails half-way writes again rather than skips
end
local histories = {}
for i = 1, #needed do histories[i] = redis.call('GET', KEYS[5 + needed[i]]) or '' end
return {'OK', stored, needed, histories, damaged}
